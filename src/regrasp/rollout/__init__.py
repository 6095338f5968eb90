"""Experience: episodes, inference, what decisions are kept in, evaluation."""
