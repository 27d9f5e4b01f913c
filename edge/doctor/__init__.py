"""`fleetgrad-edge doctor`: why a board takes no part."""
