"""The cluster behind ``cluster.yaml``: what ``ray up`` makes on AWS, and what runs on its machines."""
