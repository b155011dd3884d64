"""The counting algorithms: pure, exact, and the specification of the Lua in lua/.

All times are integer microseconds since the epoch, all arithmetic is on integers. lua/ computes the same numbers on
doubles, exactly: there every step stays below 2**53, given counts below 2**32 and windows of at most 366 days.

`decide` is the door: it opens an account for each counter key (account.py: one algorithm's counter, and the holds on
top of it), judges, and says what to remember. An algorithm (counter.py says what it must be able to do) only counts.

**A clock that steps back** (Redis's TIME is the wall clock) finds a counter that was used in the future. Up to one
window, time stands still for that counter until the clock has caught up. Beyond that it would be locked for too long,
so all that it holds counts as of now: not less than before, and gone as soon as if it had all been taken now.
"""
