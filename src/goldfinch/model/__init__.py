"""The model: blocks from the layer plan, the compressed key memory, initialisation and accounting."""

from goldfinch.model.decoder import Decoder

__all__ = ["Decoder"]
