"""Benchmarks: the same questions to a native model and to its port, and the test that decides whether they are aligned.

    exam = read_exam(rules, paths)                    # exam.py; paths: the user's own, or what download(rules) gave
    side = run_side(exam, answerer, subject, journal, repeats, progress)   # run.py; lm-eval asks, the answerer answers
    with sitting(exam, answerer, subject, journal, progress, None) as sat: sat.ask_all(1)  # sitting.py; without lm-eval
    side.save(path); Side.read(path)                  # side.py; the native side is made on another machine
    benchmark = compare(rules, native, side)          # comparison.py; a validation_report.Benchmark
    benchmark, side = examine(exam, answerer, subject, journal, native, progress)  # run.py; no more looks than needed

An answerer (answerer.py) is an `EngineAnswerer` around a scheduler, or an `EndpointAnswerer` (validate/endpoint) in
front of a server with OpenAI's interface. marking/ says what an answer is and whether it is right, by kind: a letter or
number that is read, an expression that is equal, code that passes in the user's sandbox, instructions that are
followed. Nothing here writes a question anywhere: files and messages name items by id.
"""
