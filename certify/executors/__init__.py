"""Who works on pieces of a run: processes of this machine, or a cluster's."""
