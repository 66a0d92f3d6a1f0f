"""`gateway doctor`: is this Redis right for the gateway?

    nodes      the servers behind the configured URL
    readings   what each of them tells, or why it does not
    keys       our keys, sampled
    needs      what our commands need of the user
    rights     what of that it may not
    checks     from what was read to findings: pure functions, a rule each; `access` has those of how it is reached
    examination  all checks of all servers
    report     findings as a table, and for programs
    command    the command

Nothing is changed in Redis, and nothing is read without a bound.
"""
