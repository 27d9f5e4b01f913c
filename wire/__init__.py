"""The contract both sides sign: topics, messages, frames, chunks, the plan manifest and the codecs' byte format."""
