#!/bin/sh
# Founds the federation of compose.yaml once: model, keys, and one folder a device with its share of the digits.
set -eu
[ -f /federation/run/federation/aggregator/federation.toml ] && exit 0
rm -rf /federation/run
exec fleetgrad demo --only-set-up --runs /federation --name run --broker "$BROKER" --insecure \
  --devices "$DEVICES" --rounds "$ROUNDS"
