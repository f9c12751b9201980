"""A cluster on one machine, to try the distributed runs: a host and a limited link for each rank.

    python -m experiments.cluster --num_workers=3 -- python -m experiments.train_distributed

runs

    mpiexec --with-ft ulfm --hostfile FILE -n 4 python -m experiments.train_distributed ...

on the hosts `server`, `worker1`, `worker2` and `worker3`. On a real cluster nothing of this package
is needed; it puts in the place of

- the hosts: namespaces of network, host name, shared memory, and processes (`namespaces`);
- the switch and its cables: a bridge and pairs of virtual interfaces, limited by token buckets;
- ssh: a script that has a command run in another host's namespaces, with ssh's bare environment;
- the name service: an /etc/hosts that only the hosts see;
- the host file: one with a rank for each host (`launcher`).

Files are shared, as if on a network file system, and the hosts see nothing but each other: data
sets have to be on the machine already. They share its cores, too.
"""

from experiments.cluster.launcher import Job, Mpi, find_mpi, start
from experiments.cluster.namespaces import Cluster, ClusterError

__all__ = ["Cluster", "ClusterError", "Job", "Mpi", "find_mpi", "start"]
