"""Every random draw is a function of seed, model and prompt: the same traffic gets the same pace in any order."""

import hashlib
import math
import random
from itertools import accumulate

from paceline.testing.config import Model

_Z90, _Z95 = 1.2815515655446004, 1.6448536269514722  # standard normal quantiles
_SHAPE = 4  # of the gamma distribution of token gaps: coefficient of variation 0.5


class Draw:
    """The draws for one request; `occurrence` counts admitted requests with the same prompt, from 0.

    Each quantity has a place of its own in the sequence, so a streamed and a plain answer take the same time, and
    `max_tokens` or another length changes neither the first token nor the faults.
    """

    def __init__(self, seed: int, model: str, prompt: bytes, occurrence: int) -> None:
        key = f"{seed}:{occurrence}:{model}".encode()[:64]
        self._random = random.Random(hashlib.blake2b(prompt, key=key, digest_size=8).digest())
        self.fault = self._random.random()  # uniform; decides which fault, if any
        self.cut = self._random.random()  # uniform; where a cut stream ends
        self._first, self._length = self._random.gauss(), self._random.gauss()
        self._gaps = self._random.getrandbits(64)

    def ttft_s(self, model: Model) -> float:
        """Seconds to the first token."""
        return _log_normal(model.ttft_p50_s, model.ttft_p95_s, _Z95, self._first)

    def output_tokens(self, model: Model, *, with_context: bool) -> int:
        """Length of a free answer, at most the model's `max_output_tokens`."""
        ratio = 1.0 if with_context else model.no_context_ratio
        drawn = _log_normal(model.output_p50_tokens, model.output_p90_tokens, _Z90, self._length) * ratio
        return max(1, min(model.max_output_tokens, round(drawn)))

    def writing_s(self, model: Model, tokens: int) -> float:
        """Seconds from the first token to the last: the sum of `tokens` - 1 gaps. A sum of gammas is a gamma."""
        if model.token_gap_s <= 0 or tokens < 2:
            return 0.0
        return random.Random(self._gaps).gammavariate(_SHAPE * (tokens - 1), model.token_gap_s / _SHAPE)

    def token_times_s(self, model: Model, tokens: int) -> list[float]:
        """When each token comes, in seconds after the first one; the last at `writing_s`.

        Independent gammas divided by their sum do not depend on the sum, so scaling them to the drawn total leaves
        each gap a gamma of its own.
        """
        total_s = self.writing_s(model, tokens)
        if total_s == 0:
            return [0.0] * tokens
        uniform = random.Random(self._gaps + 1).random
        # A gamma of shape 4 is the sum of 4 exponentials; 1 - u is never 0.
        gaps = [
            -math.log((1 - uniform()) * (1 - uniform()) * (1 - uniform()) * (1 - uniform())) for _ in range(tokens - 1)
        ]
        scale = total_s / sum(gaps)
        return list(accumulate((gap * scale for gap in gaps), initial=0.0))


def _log_normal(median: float, high: float, z: float, normal: float) -> float:
    return median * math.exp(math.log(high / median) / z * normal)
