"""Requests in, responses out: the threads, the calls and the failure detection of one worker.

Who runs what, and when it is handed over (each hand-over costs a thread switch, 10 to 50 us):

| thread | does | hands over to | when |
|---|---|---|---|
| a caller | writes its request, reads the answers of its link (`AnswerReader.wait`) | another waiting caller | its own answer is there |
| a caller | | the chores (`Link._repair`) | the connection broke |
| the reactor's leader | reads requests, runs their functions, writes answers | a standby, which leads from then on | the function is about to wait for a call (`Reactor.step_aside`), or ran for a whole tick (the monitor) |
| the reactor's leader | | the pool | the function is known to be slow |
| the pool | slow functions, callbacks | - | |
| the chores | handshakes, repairs, timers: nothing of the program, so nothing of it can hold them up | - | |
| the monitor | ticks of 1 ms while there is traffic: take-overs, held-back writes, arming, growth of the pools | the pool, the chores | anything that may block |
| the acceptor | accepts connections | the chores | each handshake |
"""
