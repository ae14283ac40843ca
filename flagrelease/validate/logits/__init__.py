"""The logits stage: a port and its source read the same documents, and their distributions are compared.

    record_baseline(source, out, rules, *, documents=None, device="auto", operators="auto", progress=None) -> Baseline
    run_logits(model, release, baseline, rules, work, *, layers=False, progress=None) -> Stage

`record_baseline` (record.py) is run where the source runs: the native run, the BF16 oracle, and the oracle once more in
other shapes, whose distance is the noise floor. `run_logits` (stage.py) runs the port (`model`, a loaded
`engine.model.Model` of `release`) on the documents of that `baseline` folder and judges. Both resume where they were
killed (in `out` and `work`), and under torchrun every rank calls them. `progress(done, total)` counts tokens.

documents.py (and text/, worked.py, long.py): what is read. replay.py: how it goes through the engine. distribution.py:
what is kept of logits and the figures of each token. baseline.py, files.py: the folder. sums.py,
bootstrap.py, judge.py, comparison.py, plots.py, verdict.py: from tokens to the stage. layers.py, localise.py,
layer_verdict.py: where runs part.
"""
