"""The command line: one file a command, and what they share.

    main.py      the program's first and last lines
    app.py       the commands and their groups
    failures.py  every error → one line, a hint, an exit status
    terminal.py  what may reach a terminal, and with which colours
    options.py   options that several commands have, and the connection
    outliving.py the wait for a job, which goes on when the wait ends
    tables.py    how status, records and reports look to a person; figures.py: its numbers
    processes.py what is asked of the operating system

It knows the client and the launcher, never the supervisor's inside; `journal.py` also the journal's file, while no supervisor runs.
`rich` is imported where a table is drawn, the launcher where a supervisor is started: `callpool status --json` needs neither.
"""
