"""Arrays to bytes and back: the C core and its checked Python face. It knows no model and no network."""

import os

# From 1.32 on, onnxruntime's wheels keep a number of the device and send events to their maker, unless this is set before they are
# imported. The other rooms import this package first, so that no process of ours does.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
