"""Cases over emulated links: a phone, a POP and a data center in namespaces of their own (scripts/bench/net.sh)."""


def over_link(case, run) -> None:
    raise NotImplementedError


COLD = RETURNING = BODY = ()
