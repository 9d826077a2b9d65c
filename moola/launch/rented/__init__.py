"""A run on rented machines: its plan, renting, following, ending, and what is left to `moola reap`.

plan, image_digest, request   what will be rented, and for how much, before anything is sent
session                       a run from its first launch to its last: what the commands call
renting                       one machine for one launch
following                     its log, until the attempt has a final state
terms                         what may be rented: what was shown, or carries a proof
machines                      the pod of a launch as the provider shows it, and its deadline
ledger                        what this launcher has spent, by its own clock
signs                         signs of life in the store, and how old they are
observer, verdict             when an attempt is over that cannot tell so itself
ending                        the end of machines and of runs
budget                        money of a group, set aside before a machine is asked for
members, sweep                many runs at once, under one budget
tend                          one pass over all open runs, for cron
reap                          machines that nobody looks after any more
costs                         what it all has cost
"""
