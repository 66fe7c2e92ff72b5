"""The model: blocks from the layer plan, TokenCat, initialisation and accounting."""

from goldfinch.model.decoder import Decoder

__all__ = ["Decoder"]
