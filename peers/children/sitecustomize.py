"""Python imports this module at its start: in the processes that tests start, it substitutes."""

import os
import traceback

if "ISOSTEP_PEERS_CHILD" in os.environ:
    try:
        from peers.plugin import substitute_in_child

        substitute_in_child(os.environ["ISOSTEP_PEERS_CHILD"])
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # Python would go on, with the framework's own optimizers
