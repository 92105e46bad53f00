"""Jobs and endpoints on Amazon SageMaker: the target for what one machine is too small for.

    settings     what [sagemaker] says                      requests    settings -> bodies of jobs' requests, pure
    session      credentials, region, account; every call   endpoint_requests   the same for endpoints and batch jobs
    failures     AWS errors -> one sentence and a hint      validation  a body against botocore's model of the API
    upload       data, once, by content                     remote      what a run made, so that delete finds it
    watch, logs  waiting, and what a job says meanwhile     cost        what it will cost, from a dated table
    jobs         the only importer of sagemaker-core        images      which images jobs run
    train, tune, serve, predict, batch, status, delete, doctor: a module a command

Only these modules import boto3 and sagemaker-core, and only inside functions: `--help` never loads an SDK.
"""
