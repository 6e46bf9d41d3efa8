"""`make bench`: this project beside torch RPC and a bare socket; joins; idling. Results go to `results/`.

`peers` are the ways to call, `workloads` what is done with each, `stage` the two processes of a peer, `calls` the
interleaved run, `members` joins and idling, `report` the table, the JSON and the plot.
"""
