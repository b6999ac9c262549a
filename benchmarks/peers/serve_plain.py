"""The server one would write first: FastAPI, sentence-transformers and a logistic regression.

python serve_plain.py MODEL ROWS.json PORT
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer
from sklearn.linear_model import LogisticRegression

model = SentenceTransformer(sys.argv[1], device="cpu")
rows = json.loads(Path(sys.argv[2]).read_text(encoding="utf-8"))
head = LogisticRegression(max_iter=1000).fit(model.encode(rows["texts"]), rows["labels"])
app = FastAPI()


class Body(BaseModel):
    texts: list[str]


@app.get("/health")
def health() -> str:
    return "ok"


@app.post("/predict")
def predict(body: Body) -> list[dict[str, float]]:
    """Return each text's probabilities by label."""
    probabilities = head.predict_proba(model.encode(body.texts))
    return [dict(zip(head.classes_.tolist(), row.tolist(), strict=True)) for row in probabilities]


uvicorn.run(app, port=int(sys.argv[3]), log_level="warning")
