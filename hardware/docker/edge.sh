#!/bin/sh
# Becomes the first device that no other container is: the lock on its folder lives as long as this process.
set -eu
for device in /federation/run/federation/devices/*/; do
  exec 9>"${device}claim"
  if flock -n 9; then
    exec fleetgrad-edge run --config "${device}edge.toml"
  fi
done
echo "every device of the federation has a container: found it with more (DEVICES=n, in a new volume)" >&2
exit 2
