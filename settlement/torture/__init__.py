"""`jiaozi-settlement torture`: the proof, for anybody to run, that a crash anywhere splits no settlement (I5).

`points` is where a process may be hurt, `planted` the service with those points around its seams, `forker` restarts
processes fast, `proxy` stands before ledgers and institutions, `institutions` sign, `world` builds and hurts and mends
all of it, `cases` enumerates, `checks` asks the ledgers, `campaign` runs and counts.
"""
