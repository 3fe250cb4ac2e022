"""Talk to any model directory: `python -m minicai.chat DIR`.
/reset starts over, /quit or the end of input leaves."""

import codecs
import sys

import torch

from minicai.checkpoint import load_model
from minicai.run import Parser, UserError, friendly_main, path, pick_device, real, whole
from minicai.sample import stream


def reply(model, tok, messages: list[dict], args, generator) -> str:
    """Print the answer to a conversation as it is sampled, and return it;
    raises UserError if there is no room."""
    prompt, _ = tok.encode_chat(messages, generation=True)
    room = model.config.max_positions - len(prompt)
    if room < 1:
        raise UserError(f"the conversation has {len(prompt)} tokens, "
                        f"the model reads {model.config.max_positions}: /reset starts over")
    # a character may be cut between two tokens
    utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
    text, last = "", None
    for last in stream(model, prompt, max_new_tokens=min(room, args.max_new_tokens), stop=tok.stop,
                       generator=generator, forbidden=tok.forbidden(model.config.vocab_size),
                       temperature=args.temperature):
        if last not in tok.stop:
            piece = utf8.decode(tok.token_bytes(last))
            piece = piece if text else piece.lstrip()
            text += piece
            print(piece, end="", flush=True)
    print(utf8.decode(b"", final=True) + ("" if last in tok.stop else " [cut off]"))
    return text.strip()


def introduce(about) -> None:
    """Say what a model knows and what can be asked, where its directory tells: "minicai_about" in
    tokenizer_config.json, {"knows": text, "try": requests}. A small model answers anything else in
    the only words that it has."""
    if isinstance(about, dict) and isinstance(about.get("knows"), str):
        print(f"This model knows {about['knows']}. Of anything else it makes nonsense. Try:")
        asked = about.get("try")
        for request in asked if isinstance(asked, list) else []:
            print(f"    {request}")
    print("/reset starts over, /quit leaves.")


@friendly_main
def main(argv: list[str] | None = None) -> None:
    """Read lines, print answers."""
    parser = Parser(__doc__, "python -m minicai.chat")
    parser.add_argument("model", type=path,
                        help="model directory, for example data/base or out/demo/rl/rl_cai")
    parser.add_argument("--temperature", type=real(0.01, 100, or_zero=True), default=1.0,
                        help="0: always the likeliest token (default 1)")
    parser.add_argument("--max-new-tokens", type=whole(1), default=256,
                        help="longest answer (default 256)")
    parser.add_argument("--seed", type=whole(0, 2**63 - 1), default=0,
                        help="of the sampling (default 0)")
    parser.add_argument("--system", help="a system message to begin every conversation with")
    parser.add_argument("--chat", choices=["plain", "chatml", "llama3"],
                        help="chat format, if not the directory's own")
    parser.add_argument("--device", help="cpu, cuda or mps (default: the best there is)")
    args = parser.parse_args(argv)
    model, tok = load_model(args.model, pick_device(args.device), chat=args.chat)
    generator = torch.Generator().manual_seed(args.seed)
    start = [{"role": "system", "content": args.system}] if args.system else []
    messages = list(start)
    if not sys.stdin:
        raise UserError("standard input is closed: there is nobody to talk to")
    introduce(tok.config.get("minicai_about"))
    try:
        while (line := input("Human: ").strip()) != "/quit":
            if line == "/reset":
                messages = list(start)
            elif line.startswith("/"):
                print("(/reset starts over, /quit leaves)")
            elif line:
                messages.append({"role": "user", "content": line})
                print("Assistant: ", end="", flush=True)
                try:
                    messages.append({"role": "assistant",
                                     "content": reply(model, tok, messages, args, generator)})
                except UserError as error:  # the conversation goes on without this line
                    print(f"({error})")
                    messages.pop()
    except (EOFError, KeyboardInterrupt):  # ctrl-D and ctrl-C leave quietly
        print()


if __name__ == "__main__":
    if sys.stdin:                       # a terminal may send bytes that are no UTF-8
        sys.stdin.reconfigure(errors="replace")
    main()
