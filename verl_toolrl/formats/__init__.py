"""Dialects: how models write calls, read and written.

    from verl_toolrl.formats import parse_response, write_response
    parsed = parse_response(text, "hermes")
    parsed.calls, parsed.thought, parsed.response, parsed.unparsed

One file a dialect. A reader never raises on what a model wrote, takes time linear in the text, and reports whatever it
could not read or had to repair. Writing calls and reading them back gives the same calls.
"""

from verl_toolrl.formats.base import Dialect, ParsedResponse, Problem
from verl_toolrl.formats.registry import DIALECTS, get_dialect, parse_response, write_response

__all__ = ["DIALECTS", "Dialect", "ParsedResponse", "Problem", "get_dialect", "parse_response", "write_response"]
