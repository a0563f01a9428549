"""Measuring: rows and responses in, figures with intervals out. Nothing here runs a model.

questions.py   rows of a file as questions with a key of their own
scores.py      one response against its ground truth; means a set
result.py      the result file: every response with its scores, and what was measured how
paired.py      two measurements of the same rows: differences with paired bootstrap intervals
tables.py      both on a terminal
curves.py      a training run and what it changed as a picture
agent.py       trajectories of verl's own validation: success, calls, wrong and needless ones
endpoint.py    responses from a server that speaks OpenAI's API
"""
