"""two_nodes.py CPUS CPUS starts a Ray cluster of two nodes on this machine, says its address, and does what stdin says.

lose        the second node dies, as by a power failure
gain N      another node with N CPUs comes
"""

from __future__ import annotations

import sys

from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": int(sys.argv[1]), "include_dashboard": False})
second = cluster.add_node(num_cpus=int(sys.argv[2]))
print(cluster.address, flush=True)
for line in sys.stdin:
    words = line.split()
    if words[0] == "lose":
        cluster.remove_node(second, allow_graceful=False)
    else:
        second = cluster.add_node(num_cpus=int(words[1]))
    print("done", flush=True)
cluster.shutdown()
