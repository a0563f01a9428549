"""Fetch a web page from hosts that are on a list, and from nowhere else.

Config: `{"hosts": ["docs.example.org", "*.example.com"]}`. A host must be on the list and must resolve to public
addresses only; the connection then goes to the address that was checked, so that a second answer of the name server
changes nothing. Every redirect is checked in the same way. `private_networks` exempts networks of your own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Sequence
from typing import Any
from urllib.parse import urljoin, urlsplit

import httpx

from verl_toolrl.errors import ConfigError, InfrastructureError
from verl_toolrl.toolbox import CallRefused, ModelMistake, StatefulTool, ToolError, tool

_MAX_REDIRECTS = 5
_MAX_BYTES = 1 << 20
_TEXT_TYPES = ("text/", "application/json", "application/xml", "application/xhtml")


class WebPages(StatefulTool):
    """The allow-list and the tool that obeys it.

    Args:
        hosts: Host names; `*.example.org` stands for every name below.
        private_networks: Networks in CIDR form that may be reached although they are not public.
    """

    def __init__(self, hosts: Sequence[str] = (), private_networks: Sequence[str] = ()) -> None:
        self._hosts = tuple(host.lower() for host in hosts)
        self._networks = tuple(ipaddress.ip_network(each) for each in private_networks)

    @classmethod
    def startup(cls, hosts: Sequence[str] = (), private_networks: Sequence[str] = ()) -> None:
        """Check the lists."""
        if isinstance(hosts, str) or not hosts:
            raise ConfigError("http_fetch: config needs hosts, a list such as ['docs.example.org', '*.example.com']")
        for each in private_networks:
            try:
                ipaddress.ip_network(each)
            except ValueError as err:
                raise ConfigError(f"http_fetch: private_networks: {err}") from err

    @tool(domain="web", limits={"timeout": 20.0, "output_tokens": 4096, "concurrency": 32})
    async def fetch_page(self, url: str) -> str:
        """Fetch a text page by its URL (http or https, GET) and return its content.

        Args:
            url: The whole URL.
        """
        async with httpx.AsyncClient(timeout=15.0, trust_env=False, follow_redirects=False) as client:
            for _ in range(_MAX_REDIRECTS + 1):
                response, body = await self._get(client, url)
                if response.is_redirect:
                    url = urljoin(url, response.headers["location"])
                    continue
                return _text(response, body, url)
        raise ToolError(f"More than {_MAX_REDIRECTS} redirects.")

    async def _get(self, client: httpx.AsyncClient, url: str) -> tuple[httpx.Response, bytes]:
        """Request one URL at the address that was checked, and read at most `_MAX_BYTES`."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").rstrip("."), parts.port
            target = httpx.URL(url)
        except (ValueError, httpx.InvalidURL) as err:
            raise ModelMistake(f"Not a URL: {url[:200]!r}.") from err
        if parts.scheme not in ("http", "https") or not host:
            raise ModelMistake(f"Not an http or https URL: {url[:200]!r}.")
        if parts.username is not None or parts.password is not None:
            raise CallRefused("URLs with a user name are not allowed.")
        address = await self._checked_address(host, port or (443 if parts.scheme == "https" else 80))
        request = client.build_request(
            "GET",
            target.copy_with(host=address),
            headers={"Host": parts.netloc, "User-Agent": "verl-toolrl", "Accept-Encoding": "identity"},
            extensions={"sni_hostname": host},
        )
        response = await client.send(request, stream=True)
        try:
            body = bytearray()
            if not response.is_redirect:
                async for chunk in response.aiter_raw():
                    body += chunk
                    if len(body) > _MAX_BYTES:
                        break
            return response, bytes(body[:_MAX_BYTES])
        finally:
            await response.aclose()

    async def _checked_address(self, host: str, port: int) -> str:
        """Return an address of `host` after all of them were found public and the name on the list."""
        if not any(_matches(host.lower(), pattern) for pattern in self._hosts):
            raise CallRefused(f"{host} is not on the list of allowed hosts: {', '.join(self._hosts)}.")
        try:
            found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except UnicodeError as err:
            raise ModelMistake(f"Not a host name: {host[:100]!r}.") from err
        except socket.gaierror as err:
            if err.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                raise ToolError(f"There is no host {host}.") from err
            raise InfrastructureError(f"name service: {err}") from err
        addresses = [str(each[4][0]) for each in found]
        for address in addresses:
            self._check_public(host, address)
        return addresses[0]

    def _check_public(self, host: str, address: str) -> None:
        ip = ipaddress.ip_address(address.split("%")[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        if any(ip.version == network.version and ip in network for network in self._networks):
            return
        if not ip.is_global or ip.is_multicast:
            raise CallRefused(f"{host} has an address that is not public.")


def _matches(host: str, pattern: str) -> bool:
    return host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern


def _text(response: httpx.Response, body: bytes, url: str) -> str:
    if response.status_code >= 500 or response.status_code == 429:
        raise InfrastructureError(f"{url} answered {response.status_code}")
    if response.status_code >= 400:
        raise ToolError(f"The server answered {response.status_code} {response.reason_phrase}.")
    kind: Any = response.headers.get("content-type", "text/plain").lower()
    if not kind.startswith(_TEXT_TYPES):
        raise ToolError(f"Not a text page but {kind.split(';')[0]}.")
    return body.decode(response.encoding or "utf-8", errors="replace")
