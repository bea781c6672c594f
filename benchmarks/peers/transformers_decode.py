"""transformers' `generate` on the benchmark's prompts: one JSON line with seconds, ids and the gaps of the top logits.

Run by ../decode_vs_transformers.py with the Python of an environment that has `pip install -e '.[parity]'`. Greedy,
left padding with its attention mask, no end token, so that every row has as many tokens as on our side.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import transformers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a Hugging Face folder")
    parser.add_argument("--prompts", required=True, type=Path, help="JSON: a list of lists of ids")
    parser.add_argument("--batch-sizes", required=True, type=int, nargs="+")
    parser.add_argument("--max-new-tokens", required=True, type=int)
    parser.add_argument("--repeats", required=True, type=int)
    parser.add_argument("--dtype", required=True, choices=["float32", "bfloat16"])
    arguments = parser.parse_args()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    prompts = json.loads(arguments.prompts.read_text(encoding="utf-8"))
    dtype = getattr(torch, arguments.dtype)
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval()

    def generate(rows: list[list[int]], num_tokens: int, **options):
        padded = max(map(len, rows))
        ids = torch.tensor([[0] * (padded - len(row)) + row for row in rows])
        mask = torch.tensor([[0] * (padded - len(row)) + [1] * len(row) for row in rows])
        options = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0} | options
        return model.generate(ids, attention_mask=mask, min_new_tokens=num_tokens, max_new_tokens=num_tokens, **options)

    result: dict = {"whole": {}, "prefill": {}, "ids": {}, "gaps": {}}
    with torch.inference_mode():
        for size in arguments.batch_sizes:
            rows = prompts[:size]
            for part, num_tokens in (("whole", arguments.max_new_tokens), ("prefill", 1)):
                seconds = []
                for _ in range(arguments.repeats + 1):
                    began = time.perf_counter()
                    generate(rows, num_tokens)
                    seconds.append(time.perf_counter() - began)
                result[part][size] = seconds[1:]
            # Once more, not timed, with the logits.
            full = generate(rows, arguments.max_new_tokens, return_dict_in_generate=True, output_logits=True)
            top2_TB2 = torch.stack([logits_BV.float().topk(2).values for logits_BV in full.logits])
            result["gaps"][size] = (top2_TB2[..., 0] - top2_TB2[..., 1]).T.tolist()
            result["ids"][size] = full.sequences[:, -arguments.max_new_tokens :].tolist()
    result["versions"] = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
