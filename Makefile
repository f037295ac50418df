# Every target sets itself up: a fresh clone needs `make` and nothing else. `make help` lists them.
BIN := .venv/bin
INSTALLED := .venv/installed
STUBS := .stubs/made-from
# As many tests at once as there are processors, a file's one after the other, those of the cheap folders first.
AT_ONCE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
VERSION ?= $(shell sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
# nft, ip and tcpdump are not on every user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-builtin-rules
.PHONY: help venv check format test test-long test-hosts test-packages test-ansible molecule collection bundle vagrant-validate vagrant-up demo bench faults fuzz proto golden constraints audit sbom packages repo clean
.PHONY: system-mesh system-bench system-faults system-hosts system-packages

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/\1@\2/p' $(MAKEFILE_LIST) | awk -F@ '{ printf "  make %-12s %s\n", $$1, $$2 }'

venv: $(INSTALLED) ## install the project and all it needs into .venv

$(INSTALLED): pyproject.toml packaging/constraints.txt packaging/venv.sh
	@sh packaging/venv.sh

$(STUBS): packaging/xds_stubs.py $(INSTALLED)
	@$(BIN)/python packaging/xds_stubs.py

system-mesh:
	@sh packaging/system_packages.sh mesh
	@sh packaging/namespaces.sh

system-bench:
	@sh packaging/system_packages.sh mesh bench
	@sh packaging/namespaces.sh

system-faults:
	@sh packaging/system_packages.sh mesh faults
	@sh packaging/namespaces.sh

system-hosts:
	@sh packaging/system_packages.sh mesh hosts
	@sh packaging/namespaces.sh

system-packages:
	@sh packaging/system_packages.sh packages

check: $(INSTALLED) $(STUBS) ## formatting, lint, types, layers, freshness of generated code
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python packaging/protos.py --check
	$(BIN)/python packaging/envoy_fields.py --check

format: $(INSTALLED) ## format the code and mend what ruff can mend
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: $(INSTALLED) system-mesh ## all tests: unit, golden, netns (real kernel), e2e (the lab); ONLY=tests/unit for some
	$(BIN)/python -m pytest $(if $(ONLY),$(ONLY),$(AT_ONCE))

test-long: $(INSTALLED) system-mesh ## the tests of the lab that take minutes: upgrades, dead hosts, cold copies, leaving, ...
	$(BIN)/python -m pytest -m long $(or $(ONLY),tests/e2e)

test-hosts: $(INSTALLED) .cache/ansible/installed system-hosts system-packages ## real hosts with systemd as process 1, which install the packages by apt; writes HOSTS.md; roots are made once
	@sh packaging/system_packages.sh repo
	$(BIN)/python -m pytest -m 'hosts and not long' $(or $(ONLY),tests/hosts)

test-packages: $(INSTALLED) system-packages ## build the packages, install, upgrade, remove and purge them in roots of Debian 11, 12 and 13; lintian, rpmlint
	@sh packaging/system_packages.sh repo packages-tests
	$(BIN)/python -m pytest -m packages $(or $(ONLY),tests/packages)

.cache/ansible/installed: packaging/ansible_venv.sh
	@sh packaging/ansible_venv.sh
	@touch $@

test-ansible: $(INSTALLED) .cache/ansible/installed ## the ansible collection: lint, syntax, refusals, inventory of a real controller
	$(BIN)/python -m pytest -m ansible $(or $(ONLY),tests/ansible)

molecule: $(INSTALLED) .cache/ansible/installed system-hosts system-packages ## molecule's scenario of the collection, on two real hosts (systemd-nspawn)
	@sh packaging/system_packages.sh repo
	$(BIN)/python -m pytest -m hosts tests/hosts/test_molecule.py

collection: .cache/ansible/installed ## write dist/hostmesh-mesh-VERSION.tar.gz: the ansible collection
	.cache/ansible/bin/ansible-galaxy collection build --force --output-path dist ansible

vagrant-validate: $(INSTALLED) ## vagrant's own judgement of vagrant/Vagrantfile; vagrant is installed if it is missing
	@sh packaging/system_packages.sh vagrant
	$(BIN)/python -m pytest tests/unit/test_vagrantfile.py

vagrant-up: packages .cache/ansible/installed ## occasionally: a controller and three hosts of vagrant (libvirt), rolled out by ansible; HOSTMESH_BOX=NAME, HOSTMESH_VM_DRIVER=qemu
	@sh packaging/system_packages.sh vagrant-up
	packaging/vagrant_up.sh

bundle: packages ## write dist/hostmesh-VERSION-bundle.tar: the packages of a host, for `hostmesh register --bundle`
	tar -C dist -cf dist/hostmesh-$(VERSION)-bundle.tar $(foreach name,hostmesh-envoy hostmesh-agent,$(name)_$(VERSION)_amd64.deb $(name)-$(VERSION)-1.x86_64.rpm)

demo: $(INSTALLED) system-mesh ## the mesh at work, on hosts made of network namespaces; KEEP=1 leaves it running
	$(BIN)/hostmesh lab demo

bench: $(INSTALLED) system-bench ## measure, and print each figure with its command; ONLY=push for one
	PYTHONPATH=tests $(BIN)/python -m bench $(ONLY)

faults: $(INSTALLED) system-faults ## play faults in the lab, with oracles, and write FAULTS.md; ONLY=agent-killed for one, SEED=7, FULL=1
	PYTHONPATH=tests SEED=$(SEED) FULL=$(FULL) $(BIN)/python -m faults $(ONLY)

fuzz: $(INSTALLED) ## give everything that reads foreign bytes some that nobody thought of; ONLY=yaml for one, SECONDS=60
	$(BIN)/python -m pip install --quiet --constraint packaging/constraints.txt --editable '.[fuzz]'
	PYTHONPATH=tests $(BIN)/python -m fuzz $(ONLY) --seconds $(or $(SECONDS),60)

proto: $(INSTALLED) ## generate the Python code of our protocol buffers, and what the agent knows of Envoy's
	$(BIN)/python packaging/protos.py
	$(BIN)/python packaging/envoy_fields.py

golden: $(INSTALLED) ## rewrite the expected files of tests/golden; look at the difference before you commit it
	$(BIN)/python -m pytest tests/golden --update-golden

constraints: ## take the newest versions that pyproject.toml allows into packaging/constraints.txt
	@sh packaging/constraints.sh

audit: $(INSTALLED) ## look for known vulnerabilities in what we depend on; not part of check, for it needs the network
	$(BIN)/python packaging/audit.py

sbom: $(INSTALLED) ## write dist/hostmesh-VERSION.cdx.json: what a release consists of, as CycloneDX
	$(BIN)/python packaging/sbom.py

packages: $(INSTALLED) system-packages ## build hostmesh-agent, -envoy, -controller and hostmesh as .deb and .rpm into dist; VERSION=1.2.3, MAINTAINER="Name <address>", HOMEPAGE=URL, REFRESH=1
	PYTHONPATH=packaging $(BIN)/python -m shipping packages

# What is in dist is not built again: a newer tree would make another package of a version that hosts have.
repo: $(INSTALLED) ## make dist/repo: signed repositories for apt and dnf with every version in dist; KEY=FILE or FINGERPRINT
	@ls dist/*.deb >/dev/null 2>&1 || $(MAKE) packages
	@sh packaging/system_packages.sh repo
	PYTHONPATH=packaging $(BIN)/python -m shipping repository

clean: ## remove what was generated (not .venv, and not .keys: hosts trust the key that signs their repository)
	rm -rf .stubs .cache .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist
	find agent controller packaging tests -name __pycache__ -type d -prune -exec rm -rf {} +
