"""RunPod: its REST API v2, its GraphQL API by the `runpod` package, and how a pod ends itself.

account          address, keys, secrets
rest, graphql    the two clients; both are a `moola.providers.base.PodApi`
answers          what REST answers, read into the types of `moola.providers.base`
created          the pod that a create has made, whatever happened to its answer
terminate_self   a pod ends itself, with nothing but its environment
"""
