"""What `callpool loadtest` runs: many client processes on one account, with callpool and without it, beside each other.

scenario.py       what is asked: clients, requests, the account's limits
configuration.py  the supervisor of the run with callpool
messages.py       what the parent and a client process tell each other
client.py         a client of callpool; direct.py: one that calls the provider itself; member.py: what they share
crew.py           the parent's side: start them, give the word, collect
runs.py           the three runs, each with a fresh fake provider
judge.py          figures from the fake's own log; timeline.py: open calls over time
words.py          the figures in words; tables.py: on a terminal; report.py: as JSON; page.py, charts.py: as a page
"""
