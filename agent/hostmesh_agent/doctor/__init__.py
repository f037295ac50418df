"""What is wrong with a host, found without its agent's help: codes, judges and looks.

ailments    every finding that there can be: code, severity, cure (pure; the documents and tests read it)
facts       what the judges are given (pure)
identity    judges of certificates, files and the clock (pure)
host        judges of the agent, the disk, the kernel and connection tracking (pure)
mesh        judges of Envoy, rules, ports, names and the way to the controller (pure)
look_*      the looks: each gathers facts, waits for nobody for long, and changes nothing
visit       all looks and judges, one after the other; what fails is a finding itself
"""
