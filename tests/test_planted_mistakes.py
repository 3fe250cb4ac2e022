"""Mistakes planted in key lines of the method, one at a time:
the tests named with each must see it.

    python -m pytest -m slow tests/test_planted_mistakes.py

A mistake that changes a result and that no test sees is a hole in the tests. Each is a line as it
stands and as it might have been written; where the line breaks does not matter, but one that has
been rewritten since must be brought up to date here.
"""
import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from test_pipeline import pm_args, run, sft_args

import train_pm
import train_sft

ROOT = Path(__file__).parent.parent
SCRIPT = ["test_method", "test_pipeline", "test_variants"]
# file -> the tests that speak of it
FILES = {
    "minicai/gae.py": ["test_gae", "test_ppo"],
    "minicai/ppo.py": ["test_ppo", "test_method"],
    "minicai/answers.py": ["test_answers", "test_ppo", *SCRIPT],
    "minicai/critique.py": ["test_critique", *SCRIPT],
    "minicai/feedback.py": ["test_feedback", "test_method", "test_variants"],
    "minicai/preference.py": ["test_preference", "test_method"],
    "minicai/sample.py": ["test_sample"],
    "minicai/gpt.py": ["test_gpt", "test_families"],
    "minicai/logprob.py": ["test_logprob"],
    "minicai/data.py": ["test_data", "test_method"],
    "minicai/run.py": ["test_run", "test_method"],
    "minicai/state.py": ["test_resume", "test_variants"],
    "minicai/constitution.py": ["test_constitution", "test_variants"],
    "minicai/red_team.py": ["test_variants"],
    "train_sft.py": SCRIPT,
    "train_pm.py": SCRIPT,
    "train_rl.py": SCRIPT}
MISTAKES = {
    "minicai/gae.py": [
        ("rewards = -kl_coef * inside(logp", "rewards = kl_coef * inside(logp"),
        ("inside(logp - ref_logp, mask)", "inside(ref_logp - logp, mask)"),
        ("inside(logp - ref_logp, mask).detach()", "inside(logp - ref_logp, mask)"),
        ("torch.where(mask.bool(), x, 0.0)", "x * mask"),
        ("last_index(mask)] += paid", "last_index(mask)] = paid"),
        ("torch.arange(len(paid), device=paid.device), last_index(mask)]", ":, -1]"),
        ("delta = rewards[:, t] + gamma * next_value - values[:, t]",
         "delta = rewards[:, t] + next_value - values[:, t]"),
        ("running = delta + gamma * lam * running", "running = delta + lam * running"),
        ("return advantages, advantages + values", "return advantages, advantages"),
        ("rewards, values = inside(rewards, mask), inside(values, mask)",
         "rewards = inside(rewards, mask)"),
        ("return mask.shape[1] - 1 - mask.int().flip(1).argmax(1)", "return mask.sum(1) - 1"),
        ("return inside(x, mask).sum() / mask.sum()", "return inside(x, mask).mean()"),
        ("(x - masked_mean(x, mask)) * torch.rsqrt", "x * torch.rsqrt")],
    "minicai/ppo.py": [
        ("torch.maximum(-advantages * ratio, -advantages",
         "torch.minimum(-advantages * ratio, -advantages"),
        ("ratio.clamp(1 - clip, 1 + clip)", "ratio.clamp(max=1 + clip)"),
        ("ratio = (logp - old_logp).exp()", "ratio = (old_logp - logp).exp()"),
        ("near = old_values + (values - old_values).clamp(-clip, clip)",
         "near = values.clamp(-clip, clip)"),
        ("return 0.5 * torch.maximum((values", "return 0.5 * torch.minimum((values"),
        ("- config.end_penalty * ~rollout.ended", "- config.end_penalty * rollout.ended"),
        ("SHAPES[config.reward_shape](rollout.scores)", "rollout.scores"),
        ("better = masked_whiten(raw, rollout.mask) if config.whiten else raw", "better = raw"),
        ("lam = config.lam if config.valued else 1.0", "lam = config.lam"),
        ("loss, info[\"value_loss\"] = policy + config.value_coef * value, value",
         "loss, info[\"value_loss\"] = policy + value, value"),
        ("config.clip).sum() / tokens\n    loss", "config.clip).mean()\n    loss"),
        ("(\"value_grad\", models.value_parameters())", "(\"value_grad\", [])"),
        ("clip_grad_norm_(parameters, config.max_grad_norm)", "clip_grad_norm_(parameters, 1e9)"),
        ("ended = torch.tensor([response[-1] in stop for", "ended = torch.tensor([True for"),
        ("evaluate_tokens(models.reference, None, part_ids",
         "evaluate_tokens(models.policy, None, part_ids"),
        ("ids[where], config.temperature, forbidden,", "ids[where], 1.0, forbidden,"),
        ("optimizer.zero_grad(set_to_none=True)\n            infos", "infos"),
        ("order.split(config.minibatch)", "order[:config.minibatch].split(config.minibatch)")],
    "minicai/answers.py": [
        ("return hidden[rows, columns - 1]", "return hidden[rows, columns]"),
        (">= starts[:, None])", "> starts[:, None])"),
        (">= starts[:, None])", ">= 0 * starts[:, None])"),
        ("return ids[:len(spoken) - spoken[::-1].index(1) - cut]",
         "return ids[:len(spoken) - 1 - spoken[::-1].index(1) - cut]")],
    "minicai/critique.py": [
        ("number = rng.randrange(len(constitution.critiques))",
         "number = n % len(constitution.critiques)"),
        ("number = rng.randrange(len(constitution.critiques))", "number = 0"),
        ("for r in row[\"rounds\"] if not r[\"skipped\"]]", "for r in row[\"rounds\"]]"),
        ("{principle.revision_request}\\n\\nRevision:",
         "{principle.critique_request}\\n\\nRevision:"),
        ("tok.encode_chat(m, generation=True)[0] for m in conversations]",
         "tok.encode_chat(m)[0] for m in conversations]"),
        ("reason = \"critique: empty\"", "pass"),
        ("return revisions[-1] if revisions else row[\"response\"]", "return row[\"response\"]"),
        ("opening(tok, constitution, messages, shots) if critique is None else",
         "critique_prompt(tok, constitution, messages, principle, shots, turns) "
         "if critique is None else"),
        ("if i == revision_at else text", "if i == 2 else text"),
        ("if not direct:", "if True:"),
        ("ids = tok.bos + tok.encode(constitution.preamble)", "ids = tok.bos")],
    "minicai/feedback.py": [
        ("torch.sigmoid(logp_a - logp_b)", "torch.sigmoid(logp_b - logp_a)"),
        ("torch.sigmoid(logp_a - logp_b)", "(logp_a > logp_b)"),
        ("return (p + 1 - q) / 2", "return (p + q) / 2"),
        ("return p.clamp(*clamp), mass", "return p, mass"),
        ("first = rng.random() < 0.5", "first = True"),
        ("(logp_a.exp() + logp_b.exp())", "logp_a.exp()"),
        ("prompts[i] + a[:same] for i in batch]", "prompts[i] for i in batch]"),
        ("lambda p: 0.5 if p == 0.5 else float(p > 0.5)", "lambda p: float(p > 0.5)"),
        ("return torch.stack(labels).mean(0)", "return labels[0]"),
        ("torch.stack(masses).amin(0)", "torch.stack(masses).amax(0)"),
        ("drawn += rng.sample(principles, min(count - len(drawn), len(principles)))",
         "drawn += [rng.choice(principles)]")],
    "minicai/preference.py": [
        ("binary_cross_entropy_with_logits(score_a - score_b, p_a.to(score_a))",
         "binary_cross_entropy_with_logits(score_b - score_a, p_a)"),
        ("self.head.weight /= std", "self.head.weight *= std"),
        ("self.shift = (self.shift - mean) / std", "self.shift = (self.shift + mean) / std"),
        ("hidden = self.trunk(ids)[rows, last_index(mask)]", "hidden = self.trunk(ids)[rows, -1]"),
        ("fits = (1 + torch.where(gap.isnan(), gap, gap.sign()) *", "fits = (1 - gap.sign() *"),
        ("((p_a - 0.5).abs() >= decided - 1e-6)", "(p_a >= decided)")],
    "minicai/sample.py": [
        ("(logits.float() / temperature).softmax(-1)", "logits.float().softmax(-1)"),
        ("mask[:, shared:P] = column >= shared + pad[:, None]", "mask[:, shared:P] = True"),
        ("positions = (column - pad[:, None]).clamp(min=0)", "positions = column.expand(B, -1)"),
        ("chance[live, t])", "chance[live, 0])"),
        ("chance[batch], stop", "chance[:len(batch)], stop"),
        ("forbidding_bias(None if forbidden is None else", "forbidding_bias(None if True else"),
        ("return row[:next((i + 1 for", "return row[:next((i for")],
    "minicai/gpt.py": [
        ("is_causal=bias is None and T > 1", "is_causal=False"),
        ("torch.cat([-sin, sin], -1)", "torch.cat([sin, -sin], -1)"),
        ("return x + self.mlp(self.norm2(x))", "return x + self.mlp(x)"),
        ("F.silu(self.gate(x)) * self.up(x)", "F.silu(self.up(x)) * self.gate(x)"),
        ("positions = torch.arange(past, past + T", "positions = torch.arange(0, T")],
    "minicai/logprob.py": [
        ("[logp, -torch.linalg.vecdot", "[logp, torch.linalg.vecdot"),
        ("g_logp / ctx.temperature", "g_logp"),
        ("g_entropy / ctx.temperature", "g_entropy"),
        ("beta=int(i != starts[0]))", "beta=0)"),
        ("ctx.last.pop() if ctx.last else", "ctx.last[0] if ctx.last else"),
        ("if temperature == 1 else z / temperature",
         "if temperature == 1 else z.div_(temperature)")],
    "minicai/data.py": [
        ("if held >= count:", "if held > count:"),
        ("if any(turn[\"role\"] == \"system\" for turn in turns[1:]):", "if False:"),
        ("for r in comparisons if repr(r[0]) not in held]", "for r in comparisons]"),
        ("kept = [item for item, length in zip(items, lengths) if length <= limit]",
         "kept = list(items)"),
        ("return messages, a[\"content\"], b[\"content\"]",
         "return messages, b[\"content\"], a[\"content\"]"),
        ("while turns and turns[-1][\"role\"] != \"user\":", "while False:"),
        ("return [batches[i] for i in torch.randperm(len(batches), generator=generator).tolist()]",
         "return batches")],
    "minicai/run.py": [
        ("return min((step + 1) / max(1, warmup), (total - step) / max(1, total - warmup), 1.0)",
         "return min((step + 1) / max(1, warmup), 1.0)"),
        ("norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm).item()",
         "norm = torch.nn.utils.clip_grad_norm_(parameters, 1e9).item()"),
        ("if not math.isfinite(loss + norm):", "if False:"),
        ("torch.manual_seed(seed)\n", "\n")],
    "minicai/state.py": [
        ("return Kept(rows if before == of else {}", "return Kept({}"),
        ("self.sampled.unlink(missing_ok=True)        # an earlier run's", "pass"),
        ("if found.pop(\"seal\") != seal(found)", "if not found.pop(\"seal\")"),
        ("            os.truncate(self.sampled, size)  ", "            pass  "),
        ("if sha256(path / name) != wanted:", "if False:"),
        ("if differing := differences(run, self.run):", "if differing := []:"),
        ("inputs = {flag(name) + f\" {n}\" * (n > 1): value", "inputs = {flag(name): value")],
    "minicai/constitution.py": [
        ("text.count(f\"\\n\\n{tag}:\") != 1", "text.count(f\"\\n\\n{tag}:\") < 1"),
        ("_between(p[\"edit_request\"], \"RevisionRequest:\", \"Revision:\")",
         "_between(p[\"prompt\"][0], \"CritiqueRequest:\", \"Critique:\")"),
        ("[Principle(p[\"critique\"], p[\"revision\"])",
         "[Principle(p[\"revision\"], p[\"critique\"])"),
        ("return replace(constitution, critiques=distinct[:count])",
         "return replace(constitution, critiques=distinct)"),
        ("distinct = list(dict.fromkeys(constitution.critiques))",
         "distinct = list(constitution.critiques)"),
        ("random.Random(f\"{seed} principles\").shuffle(distinct)",
         "random.Random(0).shuffle(distinct)")],
    "train_sft.py": [
        ("return -logp.sum() / tokens", "return logp.sum() / tokens"),
        ("return -logp.sum() / tokens", "return -logp.mean()"),
        ("revised[-1:] if args.last_only else revised", "revised[-1:]"),
        ("revised[-1:] if args.last_only else revised", "revised"),
        ("respond(ask, tok, helpful * args.helpful_samples", "respond(ask, tok, helpful"),
        ("for r in said if not r[\"skipped\"]]", "for r in said]"),
        ("if args.rounds else [row]", "if args.rounds else []"),
        ("constitution = draw_critiques(constitution, args.principles, args.seed)", "pass"),
        ("direct=args.direct", "direct=False"),
        ("examples += [(row[\"messages\"], "
         "row[\"ids\"]) for row in answers if not row[\"skipped\"]]",
         "pass"),
        ("optimizer.param_groups[0][\"lr\"] = lr", "pass"),
        ("rng.shuffle(red_team)", "pass"),
        ("eps=1e-5,", "eps=1e-8,"),
        ("clip_gradients(model.parameters(), 1.0, step, loss)",
         "clip_gradients(model.parameters(), 1e9, step, loss)"),
        ("tok.encode_chat(messages, generation=True)[0], ids) for",
         "tok.encode_chat(messages)[0], ids) for"),
        ("batches = [batch for _ in range(args.epochs)", "batches = [batch for _ in range(1)")],
    "train_pm.py": [
        ("score_a, score_b = pm.score(ids, mask).chunk(2)",
         "score_b, score_a = pm.score(ids, mask).chunk(2)"),
        ("* len(comparisons) / count", "* 1.0"),
        ("zip(first, second)", "zip(first, first)"),
        ("ranked = [(m, a, b, 1.0,", "ranked = [(m, a, b, 0.0,"),
        ("ids_of(train_ai + train_human, LABELS", "ids_of(train_ai, LABELS"),
        ("ids_of(train_ai + train_human, LABELS", "ids_of(train_human, LABELS"),
        ("ids_of(train_ai + train_human, LABELS[args.labels])", "ids_of(train_ai + train_human)"),
        ("label_as=LABELS[\"soft\"]: [", "label_as=LABELS[\"hard\"]: ["),
        ("\"principle\": principles[0]", "\"principle\": constitution.comparisons[0]"),
        ("draw_principles(constitution.comparisons, args.average, rng)",
         "draw_principles(constitution.comparisons, 1, rng)"),
        ("ids_of([row for row in test_human if row[-1] == file])", "ids_of(test_human)"),
        ("human = human[:args.human_limit or args.measure]", "human = human[:args.human_limit]"),
        ("count = args.comparisons or args.measure", "count = args.comparisons"),
        ("if found and wanted else", "if found else"),
        ("skipped=None if m >= args.min_mass else \"no choice\"", "skipped=None"),
        ("pm.normalise(pm.score_rows(reference))", "pass"),
        ("norm_set = first[:n] + respond(", "norm_set = respond("),
        ("generator.set_state(state) ", "pass "),
        ("load_model(args.feedback_model, device", "load_model(args.model, device"),
        ("load_model(args.init, device", "load_model(args.model, device"),
        ("optimizer.param_groups[0][\"lr\"] = lr", "pass"),
        ("clip_gradients(pm.parameters(), 1.0, step, loss)",
         "clip_gradients(pm.parameters(), 1e9, step, loss)")],
    "train_rl.py": [
        ("ended = [json.loads(row)[\"ended\"] for row in logs[\"metrics\"].kept.splitlines()]",
         "ended = []"),
        ("n = round((step + 1) * wanted) - round(step * wanted)", "n = args.batch"),
        ("random.Random(f\"{args.seed} {step}\")", "random.Random(args.seed)"),
        ("group[\"lr\"] = lr * lr_schedule(step, args.steps, args.warmup)", "group[\"lr\"] = lr"),
        ("zip(optimizer.param_groups, (args.lr, args.value_lr))",
         "zip(optimizer.param_groups, (args.lr, args.lr))"),
        ("nn.init.zeros_(value_model.head.weight)", "pass"),
        ("reference = copy.deepcopy(policy).freeze()", "reference = policy"),
        ("trunk = policy if args.shared_value else copy.deepcopy(reward_model.trunk)",
         "trunk = policy if args.shared_value else reward_model.trunk"),
        ("trunk = policy if args.shared_value else copy.deepcopy(reward_model.trunk)",
         "trunk = policy if args.shared_value else copy.deepcopy(policy)"),
        ("save_model(out / \"rl_cai\", models.policy",
         "save_model(out / \"rl_cai\", models.reference"),
        ("eps=1e-5,", "eps=1e-8,"),
        ("**parts)\n\n    save_model",
         "**{k: v for k, v in parts.items() if k != \"generator\"})\n\n    save_model"),
        ("{\"value_model\": models.value_model} if args.valued", "{} if args.valued"),
        ("if step == min(every or args.steps, args.steps):", "if False:"),
        ("if (found / MANIFEST).exists():", "if True:"),
        ("if every and step % every == 0:", "if every and step == every:")],
    "minicai/red_team.py": [
        ("{bare(text): \"shown\" for text in shown}", "{}"),
        ("known[bare(text)] = \"written twice\"", "pass"),
        ("reason = known.get(bare(text)) if ended else \"no end\"",
         "reason = known.get(bare(text))"),
        ("return \" \".join(re.findall(r\"\\w+\", text.lower()))", "return text"),
        ("forbidden[list(heads)] = False", "pass"),
        ("stop = tok.stop | heads", "stop = tok.stop"),
        ("+ tok.header(\"user\") for messages", "+ tok.header(\"assistant\") for messages")]}
CASES = [(file, i) for file, mistakes in MISTAKES.items() for i in range(len(mistakes))]


def found(line: str) -> re.Pattern:
    """What finds a line however it is broken: white space inside is any white space, and may stand
    inside brackets and after commas. A line break that the line itself has must be there; white
    space around the line is taken as it is, since it may say which line is meant."""
    core = line.strip()
    before, after = line.split(core)
    pattern = ""
    for part in re.findall(r"\s+|[([{]|[)\]}]|,|[^\s()[\]{},]+", core):
        if part.isspace():
            pattern += r"\s*\n\s*" if "\n" in part else r"\s+"
        else:
            pattern += r"\s*" * (part in ")]}") + re.escape(part) + r"\s*" * (part in "([{,")
    # a space after a comma may be a line break, and both are one run
    pattern = re.sub(r"(?:\\s[*+]){2,}", lambda run: r"\s+" if "+" in run[0] else r"\s*", pattern)
    return re.compile(re.escape(before) + pattern + re.escape(after))


def test_where_a_line_breaks_does_not_matter():
    for same in ("a b(c, d)", "a b(\n    c,\n    d\n)", "a\n  b(c,\n    d)"):
        assert found("a b(c, d)").fullmatch(same)
    for other in ("ab(c, d)", "a b(c d)", "a b(c, e)"):
        assert not found("a b(c, d)").search(other)
    assert found("f(x)\n    g").search("f(x)\n  g") and not found("f(x)\n    g").search("f(x) g")
    assert found("    f(x)").search("\n    f(x)") and not found("    f(x)").search("\n  f(x)")


def test_every_line_is_still_there():
    """In every run of the tests: a mistake that cannot be planted any more is no test."""
    assert len(CASES) >= 100
    for file, mistakes in MISTAKES.items():
        text = (ROOT / file).read_text(encoding="utf-8")
        for line, instead in mistakes:
            times = len(found(line).findall(text))
            assert times == 1 and line != instead, (file, line, times)
            compile(found(line).sub(lambda _: instead, text), file, "exec")     # still Python


@pytest.fixture(scope="module")
def made(toy):
    """The toy world and its first two stages, by the method as it is."""
    run(train_sft, sft_args(toy, toy / "before/sft"))
    run(train_pm, pm_args(toy, toy / "before/pm", "--model", toy / "before/sft/sl_cai"))
    yield toy
    shutil.rmtree(toy / "before")


def copy_of_everything(folder):
    """All that the tests read; what does not change as links."""
    for item in ROOT.iterdir():
        if item.name in ("minicai", "tests"):
            shutil.copytree(item, folder / item.name, ignore=shutil.ignore_patterns("__pycache__"))
        elif item.suffix in (".py", ".toml"):
            shutil.copy(item, folder)
        elif not item.name.startswith(".") and item.name != "out":
            (folder / item.name).symlink_to(item)


def in_a_fork(folder, tests, toy) -> tuple:
    """(exit code, output) of the tests there, in a fork of this process:
    torch need not be imported again."""
    if pid := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), (folder / "said").read_text()
    code = 9
    try:
        said = os.open(folder / "said", os.O_WRONLY | os.O_CREAT)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        os.chdir(folder)
        os.environ["MINICAI_TOY"] = str(toy)
        files = {name: str(getattr(module, "__file__", "")) for name, module in sys.modules.items()}
        own = [name for name, file in files.items()
               if str(ROOT) in file and "site-packages" not in file]      # .venv lies inside
        for name in own:
            del sys.modules[name]
        kept = [p for p in sys.path if not p.startswith(str(ROOT)) or "site-packages" in p]
        sys.path[:] = [str(folder), str(folder / "tests"), *kept]
        code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "--basetemp", str(folder / "tmp"),
                            "--rootdir", str(folder), *tests])
        sys.stdout.flush(), sys.stderr.flush()
    finally:
        os._exit(code)


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({tuple(tests) for tests in FILES.values()}))
def test_nothing_is_seen_where_nothing_was_planted(made, tmp_path, tests):
    copy_of_everything(tmp_path)
    code, said = in_a_fork(tmp_path, [f"tests/{name}.py" for name in tests], made)
    assert code == 0, said[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("file, number", CASES)
def test_it_is_seen(made, tmp_path, file, number):
    copy_of_everything(tmp_path)
    line, instead = MISTAKES[file][number]
    text = (tmp_path / file).read_text(encoding="utf-8")
    text, times = found(line).subn(lambda _: instead, text)
    assert times == 1
    (tmp_path / file).write_text(text, encoding="utf-8")
    code, said = in_a_fork(tmp_path, [f"tests/{name}.py" for name in FILES[file]], made)
    assert code in (1, 2), f"{file}: nobody sees {line!r} written as {instead!r} ({said[-300:]})"
    shutil.rmtree(tmp_path / "tmp", ignore_errors=True)
