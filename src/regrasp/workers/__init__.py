"""The three roles: environments, rollout (inference) and actor (policy update)."""
