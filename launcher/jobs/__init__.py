"""Jobs: a run handed to a cluster's queue, asked after, followed and cancelled."""
