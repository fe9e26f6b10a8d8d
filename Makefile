# Names for the scripts; what they do is written in them.

.PHONY: help demo test matrix soak soak-exactly-once soak-locks soak-queues soak-tasks soak-topologies bench bench-quick

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-18s %s\n", $$1, $$2 }' Makefile

demo: ## run the main job of both sides on a private Redis server (REDIS_URL=... takes that one; ARGS=--tokio: one side)
	@scripts/demo $(ARGS)

test: ## run the suite: all of it in debug, the protocol's tests again and short soaks in release
	@scripts/test

matrix: ## run the suites about the server on every server that pip and apt-get have, and on SERVERS="name=/path ..." (ARGS=name: on one)
	@scripts/matrix $(ARGS)

soak: ## run the soak: a million transactions, then 10 minutes of faults (ARGS="--seconds N --seed S")
	@scripts/soak $(ARGS)

soak-exactly-once: ## run the exactly-once soak: 100,000 cuts, as many while slots move, 30 failovers (ARGS="--cuts N --moving N ...")
	@scripts/soak-exactly-once $(ARGS)

soak-locks: ## run the locks' soak: a million tries, 50,000 fenced writes, 40 failovers (ARGS="--tries N --seed S ...")
	@scripts/soak-locks $(ARGS)

soak-queues: ## run the soak of what waiting callers leave with their places: 100,000 rounds of cuts, 10,000,000 blocks (ARGS="--cuts N ...")
	@scripts/soak-queues $(ARGS)

soak-tasks: ## run the soak of tasks: a million scopes twice, 20,000 timeouts, a stopped server, 100,000 cuts, 10,000,000 blocks (ARGS="--scopes N ...")
	@scripts/soak-tasks $(ARGS)

soak-topologies: ## move slots, kill masters, add and remove nodes under load; failovers by sentinels (ARGS="--rounds N --seed S")
	@scripts/soak-topologies $(ARGS)

bench: ## all peers of threads, then of tasks, on a private server; writes docs/performance.md (ARGS=tokio: tasks alone)
	@scripts/bench $(ARGS)

bench-quick: ## the same in under two minutes, once it is built
	@scripts/bench --quick $(ARGS)
