"""A parameter server and elastic trainers that learn to read handwritten digits.

    rpcgroup run -f manifests/samples/digits.yaml

`server` holds the model, `trainer` computes gradients on its share of the images, `data` deals the shares out,
`model` is the classifier, `ledger` proves that no gradient was lost, `demo` scales and hurts the job (`make run`).
"""
