"""`isostep race`: one model, one start, several optimizers, an equal budget, real data.

Read in this order: `task` (what is trained), `contestants` (who runs), `learning_rates` (which
rates each tries), `runner` (one run, and the race of all), `store` (finished runs on disk),
`results` (who won); then the faces: `live`, `table`, `picture`, `page`, and `command`, which ties
them to the command line.
"""
