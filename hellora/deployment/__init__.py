"""A federation of machines: the processes around Flower's, and what server and clients do in them.

On the server    server_process (`hellora server`), door and door_process (what of it can be reached), admission (whose
                 keys), turns (runs queue), flower_setup (what its app makes of an experiment and the clients)
On a client      client_process (`hellora client`), trainer (its resident process), participant (what that does),
                 kept and own_model (what it keeps of a run, for its next task and for its own use), own_settings and
                 own_limits (what it was started with, which binds whatever a server says), own_app (which app answers
                 messages)
Between them     flower_app (what Flower calls on either side), joining (who a client is, and what it can)
Anywhere         certificates and renewal, federated_run (submit and follow), flower_tools (Flower's own programs)
Beneath all      supervision (children that are kept alive), supervisor (nothing outlives whoever asked)

It imports runs, results, record, experiments, backends, client, tasks, data, model, methods, budgets and core.
"""

NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}"  # of a client
REFUSES_KEY = "this server refuses this key: "  # how a door's answer begins, which a client's SuperNode prints
