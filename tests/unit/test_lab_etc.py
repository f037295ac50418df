from hostmesh_controller.lab import etc

PASSWD = "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534::/:/usr/sbin/nologin\n"
GROUP = "root:x:0:\nnogroup:x:65534:\n"


def test_the_labs_users_are_added_to_the_machines() -> None:
    found = etc.accounts(PASSWD, GROUP)
    assert found.passwd.startswith(PASSWD)
    assert found.ids == {"hostmesh-envoy": 9915, "app": 9916}
    assert "app:*:9916:9916::/var/lib/app:/bin/sh" not in found.passwd  # it has a comment field
    assert "app:*:9916:9916:programs of the lab:/var/lib/app:/bin/sh\n" in found.passwd
    assert "app:*:9916:\n" in found.group


def test_an_id_that_the_machine_uses_is_not_given_again() -> None:
    taken = PASSWD + "someone:x:9915:100::/:/bin/sh\n"
    assert etc.accounts(taken, GROUP + "some:x:9916:\n").ids == {"hostmesh-envoy": 9917, "app": 9918}


def test_the_machines_user_of_the_same_name_is_replaced() -> None:
    found = etc.accounts(PASSWD + "app:x:1000:1000::/home/app:/bin/bash\n", GROUP + "app:x:1000:\n")
    assert [line for line in found.passwd.splitlines() if line.startswith("app:")] == [
        "app:*:9916:9916:programs of the lab:/var/lib/app:/bin/sh"
    ]


def test_no_password_field_points_to_shadow() -> None:
    lines = etc.accounts(PASSWD, GROUP).passwd.splitlines()
    assert all(line.split(":")[1] == "*" for line in lines if line.startswith(("app:", "hostmesh-envoy:")))
