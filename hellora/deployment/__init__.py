"""A federation of machines: the processes around Flower's, and what server and clients do in them.

On the server    server_process (`hellora server`), flower_setup (what its app makes of an experiment and the clients)
On a client      client_process (`hellora client`), trainer (its resident process), participant (what that does)
Anywhere         certificates, federated_run (submit and follow), commands (the command line), flower_tools
Beneath all      supervision (children that are kept alive), supervisor (nothing outlives whoever asked)
"""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"  # of a client
