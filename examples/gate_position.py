"""Which gate position lowers the loss of a tiny model? Plan, run, compare: about a minute on two cores."""

import gatelab as gl

study = gl.Study(
    "gate-position-tiny",
    question="Which gate position lowers the loss of a tiny model?",
    base={
        "preset": "tiny-dense",
        "model": {"layers": 1, "hidden_size": 16, "query_heads": 2, "kv_heads": 2, "head_dim": 8, "ffn_size": 32},
        "training": {"tokens": "20k", "sequence_length": 64, "batch_size": 8},
        "evaluation": {"tokens": "4k", "points": 3, "diagnostic_tokens": 128},
    },
    axes={"model.gate.position": ["none", "value", "sdpa"]},
    baseline={"model.gate.position": "none"},
    match="parameters",
    seeds=3,
    fixed=["training.optimizer.learning_rate"],
)
print(study.plan())  # variants, parameters, FLOPs, memory: nothing has run yet

results = study.run("gatelab-runs")  # the same call resumes an interrupted study
comparison = results.comparison()
print(comparison)

best = comparison.result.rows[0]  # sorted, best first
print(f"lowest loss: {best.variant}, {best.value.mean:.4f} nats/token")

trained = results.load_model(best.variant, seed=0)  # trained.model is a torch module in evaluation mode
print(f"{sum(weight.numel() for weight in trained.model.parameters()):,} parameters")
