"""The network: towers, projector, language model, OFT heads."""
