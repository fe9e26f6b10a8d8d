# Names for the scripts; what they do is written in them.

.PHONY: help demo test soak

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-6s %s\n", $$1, $$2 }' Makefile

demo: ## run the main job on a private Redis server (REDIS_URL=... takes that one; ARGS=... is passed on)
	@scripts/demo $(ARGS)

test: ## run the suite: all of it in debug, the protocol and stress tests again in release
	@scripts/test

soak: ## run the soak: a million transactions, then 10 minutes of faults (ARGS="--seconds N --seed S")
	@scripts/soak $(ARGS)
