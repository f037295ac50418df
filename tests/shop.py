"""Documents of a small shop, and what applying them does."""

import httpx

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: reviews, namespace: shop}
spec:
  ports: [{port: 80, name: http}]
  selector: {app: reviews}
"""
HOST = """
apiVersion: hostmesh.io/v1
kind: Host
metadata: {name: h1}
spec: {addresses: [10.0.0.1]}
"""
ROUTE = """
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: reviews, namespace: shop}
spec:
  hosts: [reviews]
  http:
  - route: [{destination: {host: reviews}}]
"""


def actions(answer: httpx.Response) -> dict[str, str]:
    assert answer.status_code == 200, answer.text
    return {f"{each['kind']}/{each['name']}": each["action"] for each in answer.json()["objects"]}
