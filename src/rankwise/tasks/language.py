"""What a language model learns from a row: its tokens, and which of them count.

    prompt, completion   tokens of both, and the end-of-text token          those of the completion count
    messages             tokens that the model's chat template writes       all count, or those of the assistant's messages
    text                 tokens of the text, and the end-of-text token      all count

Names and defaults are those of TRL's `SFTConfig`. Source: TRL 1.16, `SFTTrainer._prepare_dataset`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from rankwise.config import TrainOptions
from rankwise.errors import RankwiseError
from rankwise.tasks import messages
from rankwise.tasks.messages import Messages

if TYPE_CHECKING:
    import transformers  # for its types alone: the grid's own process reads tasks and needs no tokenizer

LossOn = Literal["all", "completion", "assistant"]
LEARNED = {
    "all": "all of their tokens",
    "completion": "the completion's tokens",
    "assistant": "the tokens of the assistant's messages",
}
KINDS = {"messages": ("messages",), "prompt": ("prompt", "completion"), "text": ("text",)}
"""What rows may be, and the columns of each."""
GENERATION = "{% generation"
"""How a chat template marks what the assistant writes, with or without a dash behind the brace."""


@dataclass(frozen=True)
class Learned:
    """How a language model's rows are read.

    Attributes:
        chat: texts are lists of messages, as `messages.dump` writes them.
        loss_on: the tokens that count: all, those of the completion, or those of the assistant's messages.
    """

    chat: bool
    loss_on: LossOn


def loss_on(kind: str, train: TrainOptions) -> LossOn:
    """Return which tokens count: by TRL's defaults the completion's where there is one, all others otherwise."""
    if train.completion_only_loss and kind != "prompt":
        raise RankwiseError("`completion_only_loss=True` is for rows with a prompt and a completion.")
    if train.assistant_only_loss:
        if kind != "messages":
            raise RankwiseError("`assistant_only_loss=True` is for rows of messages.")
        return "assistant"
    return "completion" if kind == "prompt" and train.completion_only_loss is not False else "all"


def tokenise(
    prompts: Sequence[str],
    completions: Sequence[str] | None,
    learned: Learned,
    tokenizer: "transformers.PreTrainedTokenizerBase",
) -> Iterator[tuple[list[int], list[bool]]]:
    """Yield the token ids of each row, and which of its tokens count.

    Args:
        prompts: texts, or prompts where there are completions.
        completions: of the same rows, or None.
        learned: how they are read.
        tokenizer: the model's.

    Raises:
        RankwiseError: the tokenizer has no end-of-text token, or no chat template that messages can be written by.
    """
    _check(tokenizer, learned)
    if learned.chat:
        rows = [
            (messages.load(text), messages.load(completion))
            for text, completion in zip(prompts, completions or ["[]"] * len(prompts), strict=True)
        ]
        yield from _chats(rows, learned, tokenizer, whole=completions is None)
        return
    ends = _ends_by_itself(tokenizer)
    before = [""] * len(prompts) if completions is None else prompts
    behind = prompts if completions is None else completions
    last = [text if ends else _with_end(text, str(tokenizer.eos_token)) for text in behind]
    whole = _ids(tokenizer, [a + b for a, b in zip(before, last, strict=True)])
    if learned.loss_on == "all":
        yield from ((ids, [True] * len(ids)) for ids in whole)
        return
    for prompt, ids in zip(_ids(tokenizer, before), whole, strict=True):
        yield ids, _behind(prompt, ids)


def prompt_ids(
    prompts: Sequence[str], learned: Learned, tokenizer: "transformers.PreTrainedTokenizerBase"
) -> list[list[int]]:
    """Return the token ids of prompts to be completed, as they stand before a completion in training.

    Raises:
        RankwiseError: the tokenizer has no end-of-text token, or no chat template that messages can be written by.
    """
    _check(tokenizer, learned)
    if learned.chat:
        texts = [_written(tokenizer, messages.load(text), ready=True) for text in prompts]
        return _ids(tokenizer, texts, special=False)
    found = _ids(tokenizer, prompts)
    return [ids[:-1] for ids in found] if _ends_by_itself(tokenizer) else found


def _check(tokenizer: "transformers.PreTrainedTokenizerBase", learned: Learned) -> None:
    name = tokenizer.name_or_path or "this model"
    if tokenizer.eos_token_id is None:
        raise RankwiseError(
            f"The tokenizer of {name} has no end-of-text token (eos_token), so a model can't learn where a text ends. "
            "Set it, and save the tokenizer with the model."
        )
    if learned.chat and not getattr(tokenizer, "chat_template", None):
        raise RankwiseError(
            f"The rows are messages, and the tokenizer of {name} has no chat template to write them by. Take a model that was trained "
            "on conversations, or rows with prompt and completion."
        )


def _ids(
    tokenizer: "transformers.PreTrainedTokenizerBase", texts: Sequence[str], *, special: bool = True
) -> list[list[int]]:
    if not texts:
        return []
    encoding: Any = tokenizer(
        list(texts),
        add_special_tokens=special,
        truncation=False,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )
    return [list(ids) for ids in encoding["input_ids"]]


def _ends_by_itself(tokenizer: "transformers.PreTrainedTokenizerBase") -> bool:
    """Return whether a tokenizer puts the end-of-text token behind every text."""
    (ids,) = _ids(tokenizer, ["a"])
    return ids[-1:] == [tokenizer.eos_token_id]


def _with_end(text: str, end: str) -> str:
    return text if text.endswith(end) else text + end


def _behind(prompt: list[int], ids: list[int]) -> list[bool]:
    """Say which tokens count: those from where the prompt's tokens and the row's differ, as they may where letters merge."""
    same = next(
        (i for i, (a, b) in enumerate(zip(prompt, ids, strict=False)) if a != b), min(len(prompt), len(ids))
    )
    return [False] * same + [True] * (len(ids) - same)


# ── Conversations ─────────────────────────────────────────────────────────────────────────────


def _chats(
    rows: Sequence[tuple[Messages, Messages]],
    learned: Learned,
    tokenizer: "transformers.PreTrainedTokenizerBase",
    *,
    whole: bool,
) -> Iterator[tuple[list[int], list[bool]]]:
    if learned.loss_on == "assistant":
        for prompt, completion in rows:
            yield _assistants(tokenizer, [*prompt, *completion])
        return
    written = _ids(tokenizer, [_written(tokenizer, [*a, *b]) for a, b in rows], special=False)
    if whole or learned.loss_on == "all":
        yield from ((ids, [True] * len(ids)) for ids in written)
        return
    before = _ids(tokenizer, [_written(tokenizer, a, ready=True) for a, _ in rows], special=False)
    for prompt, ids in zip(before, written, strict=True):
        yield ids, _behind(prompt, ids)


def _written(
    tokenizer: "transformers.PreTrainedTokenizerBase", conversation: Messages, *, ready: bool = False
) -> str:
    """Return a conversation as the chat template writes it; `ready` for the assistant to go on."""
    try:
        return str(tokenizer.apply_chat_template(conversation, tokenize=False, add_generation_prompt=ready))
    except Exception as error:  # a template is a program, and raises what it likes
        roles = ", ".join(str(message["role"]) for message in conversation)
        raise RankwiseError(
            f"The chat template of {tokenizer.name_or_path or 'this model'} refuses messages of {roles:.80}: {str(error).strip():.200}"
        ) from None


def _assistants(
    tokenizer: "transformers.PreTrainedTokenizerBase", conversation: Messages
) -> tuple[list[int], list[bool]]:
    """Return the tokens of a conversation, and which of them the assistant wrote, its end of turn among them.

    The template says it where it marks what the assistant writes. Elsewhere a message is what the text has more with it than without.

    Raises:
        RankwiseError: neither is possible.
    """
    template: Any = tokenizer.chat_template
    if isinstance(template, str) and GENERATION in template.replace("{%-", "{%"):
        found: Any = tokenizer.apply_chat_template(
            conversation, return_dict=True, return_assistant_tokens_mask=True
        )
        return list(found["input_ids"]), [bool(one) for one in found["assistant_masks"]]
    text = _written(tokenizer, conversation)
    spans: list[tuple[int, int]] = []
    for place, message in enumerate(conversation):
        if message["role"] != "assistant":
            continue
        before = _written(tokenizer, conversation[:place], ready=True) if place else ""
        upto = _written(tokenizer, conversation[: place + 1])
        if not text.startswith(upto) or not upto.startswith(before):
            raise RankwiseError(
                f"The chat template of {tokenizer.name_or_path or 'this model'} writes a message otherwise once others follow it, so it "
                "can't be told which tokens are the assistant's. Leave `assistant_only_loss=` out."
            )
        spans.append((len(before), len(upto)))
    if not tokenizer.is_fast:
        raise RankwiseError(
            "`assistant_only_loss=True` takes a fast tokenizer, which says where a token begins."
        )
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    places = encoding["offset_mapping"]
    counts = [any(first <= a and b <= last and b > a for first, last in spans) for a, b in places]
    return list(encoding["input_ids"]), counts
