"""Jobs and endpoints on Amazon SageMaker: the target for what one machine is too small for.

    settings     what [sagemaker] says                      requests    settings -> the bodies of API calls, pure
    session      credentials, region, account; every call   validation  a body against botocore's model of the API
    failures     AWS errors -> one sentence and a hint      resources   what a run made, so that delete finds it
    upload       data, once, by content                     cost        what it will cost, from a dated table
    train, tune, serve, predict, batch, status, delete, doctor: a module a command

Only these modules import boto3 and sagemaker-core, and only inside functions: `--help` never loads an SDK.
"""
