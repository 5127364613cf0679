"""The methods of `LLM` for embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Unpack

from octavo import _core
from octavo.batch import embed_batch, single_error
from octavo.calls import names_arguments
from octavo.inputs import Prompt, as_token_ids, many_prompts, one_prompt
from octavo.outputs import EmbeddingRequestOutput
from octavo.params import EmbeddingOptions
from octavo.request_handle import Output, RequestHandle

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["EmbeddingMethods"]


@names_arguments(owner="LLM")
class EmbeddingMethods:
    """Embeddings: the hidden states of prompts, pooled."""

    _engine: _core.Engine
    if TYPE_CHECKING:
        _handle: Callable[[_core.Stream, type[Output], str | list[int]], RequestHandle[Output]]

    def embed(
        self, prompts: Prompt | Sequence[Prompt], *, use_tqdm: bool = True, **options: Unpack[EmbeddingOptions]
    ) -> list[EmbeddingRequestOutput]:
        """Embeds one prompt or many: the hidden states of the last layer, after the final norm, pooled to one vector.

        Args:
            prompts: a text, a list of token ids, or a list of these.
            use_tqdm: show a progress bar (for more than one prompt).
            options: see EmbeddingOptions.

        Raises:
            InvalidRequestError, ContextLengthError: a prompt or argument; raised before anything runs.
            OctavoError: the only prompt failed. With several prompts the failed one's output carries `error`.
        """
        items = [one_prompt(p) for p in many_prompts(prompts)]
        return single_error(embed_batch(self._engine, items, dict(options), use_tqdm and len(items) > 1))

    async def aembed(self, prompt: Prompt, **options: Unpack[EmbeddingOptions]) -> EmbeddingRequestOutput:
        """`embed` for one prompt without blocking the event loop. Cancelling the task ends the request."""
        return await self.submit_embedding(prompt, **options).aresult()

    def submit_embedding(
        self, prompt: Prompt, **options: Unpack[EmbeddingOptions]
    ) -> RequestHandle[EmbeddingRequestOutput]:
        """`submit` for an embedding: the handle gives one output."""
        item = one_prompt(prompt)
        stream = self._engine.embed(item, dict(options))
        return self._handle(stream, EmbeddingRequestOutput, item)

    def check_embedding(self, token_ids: Sequence[int], **options: Unpack[EmbeddingOptions]) -> None:
        """Raises the error that `submit_embedding` would raise for the prompt or an option. Submits nothing."""
        self._engine.check_embed(as_token_ids(token_ids), dict(options))
