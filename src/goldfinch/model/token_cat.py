"""TokenCat (P14-15): one small key per token, and the way back to full width."""

import torch
from torch import Tensor, nn

from goldfinch.config import ModelConfig
from goldfinch.layers.norm import rms_normalize
from goldfinch.mixers import SharedKeys


class TokenCat(nn.Module):
    """Compresses the hidden state to the latent that the cache stores, and expands latents with the tokens' embeddings.

    Both matrices are shared by all GOLD layers.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.down = nn.Linear(config.width, config.latent_width, bias=False)
        """W_KD, weight (R, D)."""
        self.up = nn.Linear(config.width + config.latent_width, config.width, bias=False)
        """W_KU, weight (D, D + R); columns of the embedding first."""

    def compress(self, x: Tensor) -> Tensor:
        """Raw residual stream below the first GOLD layer, (B, T, D) -> latents (B, T, R) (P14)."""
        return self.down(x)

    def expand(self, x0: Tensor, latents: Tensor, document_starts: Tensor | None = None) -> SharedKeys:
        """Embeddings after ln0, (B, S, D), and latents (B, S, R) -> what every GOLD layer reads (P15).

        document_starts: (B, S) bool, the tokens that begin a document; None for one document.
        """
        z = self.up(torch.cat([x0, latents.to(x0.dtype)], dim=-1))
        return SharedKeys(keys=rms_normalize(z), embeddings=rms_normalize(x0), document_starts=document_starts)

    def embedding_part(self, x0: Tensor) -> Tensor:
        """x0 W_a, (S, D) -> (S, D): the part of z = x0 W_a + c W_b that the token id alone decides (SPEC 6, fact 2)."""
        return x0 @ self.up.weight[:, : x0.shape[-1]].T

    def keys(self, embedding_part: Tensor, latents: Tensor) -> Tensor:
        """kD as `expand` computes it, from x0 W_a, (S, D), and latents (S, R): only c W_b is left to do."""
        latent_columns = self.up.weight[:, embedding_part.shape[-1] :]
        return rms_normalize(torch.addmm(embedding_part, latents, latent_columns.T))
