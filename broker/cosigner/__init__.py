"""Signs heads on another machine than the aggregator's, so that who breaks into one of them can release nothing."""
