"""The Kubernetes files, against Kubernetes' own schemas and JobSet's."""

import copy
import re
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

FOLDER = Path(__file__).parents[2] / 'launch'
KUBERNETES = ('1.31', '1.37')
JOBSETS = ('jobset_gpu.yaml', 'jobset_tpu.yaml')

# The envelope of jobset.x-k8s.io/v1alpha2, from its Go types; `template` is
# Kubernetes' own JobTemplateSpec and checked as such.
NAME = {'type': 'string', 'pattern': '^[a-z]([-a-z0-9]*[a-z0-9])?$'}
NAMES = {'type': 'array', 'items': {'type': 'string'}, 'uniqueItems': True}
TARGETS = {'type': 'array', 'items': NAME}


def record(required=(), **properties):
  return {
    'type': 'object',
    'properties': properties,
    'required': list(required),
    'additionalProperties': False,
  }


def count(minimum=0):
  return {'type': 'integer', 'minimum': minimum}


JOBSET = record(
  ('apiVersion', 'kind', 'metadata', 'spec'),
  apiVersion={'const': 'jobset.x-k8s.io/v1alpha2'},
  kind={'const': 'JobSet'},
  metadata=record(
    ('name',),
    name=NAME,
    annotations={
      'type': 'object',
      'additionalProperties': {'type': 'string'},
    },
    labels={'type': 'object', 'additionalProperties': {'type': 'string'}},
  ),
  spec=record(
    ('replicatedJobs',),
    replicatedJobs={
      'type': 'array',
      'minItems': 1,
      'items': record(
        ('name', 'template'),
        name=NAME,
        groupName=NAME,
        replicas=count(1),
        template={'type': 'object'},
        dependsOn={
          'type': 'array',
          'items': record(
            ('name', 'status'),
            name=NAME,
            status={'enum': ['Ready', 'Complete']},
          ),
        },
      ),
    },
    network=record(
      enableDNSHostnames={'type': 'boolean'},
      subdomain=NAME,
      publishNotReadyAddresses={'type': 'boolean'},
    ),
    successPolicy=record(
      ('operator',),
      operator={'enum': ['All', 'Any']},
      targetReplicatedJobs=TARGETS,
    ),
    failurePolicy=record(
      maxRestarts=count(),
      restartStrategy={
        'enum': ['Recreate', 'BlockingRecreate', 'InPlaceRestart']
      },
      rules={
        'type': 'array',
        'items': record(
          ('name', 'action'),
          name={
            'type': 'string',
            'pattern': '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$',
          },
          action={
            'enum': [
              'FailJobSet',
              'RestartJobSet',
              'RestartJobSetAndIgnoreMaxRestarts',
              'RestartJob',
              'RestartJobAndIgnoreMaxRestarts',
            ]
          },
          onJobFailureReasons=NAMES,
          onJobFailureMessagePatterns=NAMES,
          targetReplicatedJobs=TARGETS,
        ),
      },
    ),
    startupPolicy=record(
      ('startupPolicyOrder',),
      startupPolicyOrder={'enum': ['AnyOrder', 'InOrder']},
    ),
    suspend={'type': 'boolean'},
    coordinator=record(
      ('replicatedJob',),
      replicatedJob=NAME,
      jobIndex=count(),
      podIndex=count(),
    ),
    managedBy={'type': 'string', 'maxLength': 63},
    ttlSecondsAfterFinished=count(),
  ),
)


def load(name):
  (document,) = yaml.safe_load_all((FOLDER / name).read_text())
  return document


def as_job(jobset):
  """The one replicated Job, as JobSet will create it."""
  (replicated,) = jobset['spec']['replicatedJobs']
  name = f'{jobset["metadata"]["name"]}-{replicated["name"]}-0'
  return {
    'apiVersion': 'batch/v1',
    'kind': 'Job',
    'metadata': {'name': name},
    'spec': replicated['template']['spec'],
  }


def check(jobset, version=KUBERNETES[-1]):
  jsonschema.validate(jobset, JOBSET)
  kubernetes_validate.validate(as_job(jobset), version, strict=True)


@pytest.mark.parametrize('version', KUBERNETES)
@pytest.mark.parametrize('name', JOBSETS)
def test_jobsets_follow_the_schemas(name, version):
  check(load(name), version)


@pytest.mark.parametrize('version', KUBERNETES)
def test_volume_follows_the_schema(version):
  kubernetes_validate.validate(load('volume.yaml'), version, strict=True)


def misspell_policy(jobset):
  jobset['spec']['failurePolicy']['maxRestart'] = 1


def misspell_action(jobset):
  jobset['spec']['failurePolicy']['rules'][0]['action'] = 'RestartAll'


def misspell_resources(jobset):
  pod = as_job(jobset)['spec']['template']['spec']
  pod['containers'][0]['resource'] = {}


def misspell_claim(jobset):
  pod = as_job(jobset)['spec']['template']['spec']
  pod['volumes'][0]['persistentVolumeClaim'] = {'name': 'eain-data'}


@pytest.mark.parametrize('name', JOBSETS)
@pytest.mark.parametrize(
  'mistake',
  [misspell_policy, misspell_action, misspell_resources, misspell_claim],
)
def test_the_schemas_see_mistakes(name, mistake):
  jobset = copy.deepcopy(load(name))
  mistake(jobset)
  with pytest.raises(jsonschema.ValidationError):
    check(jobset)


@pytest.mark.parametrize('name', JOBSETS)
def test_what_the_schemas_do_not_say(name):
  jobset = load(name)
  job = as_job(jobset)['spec']
  pod = job['template']['spec']
  (container,) = pod['containers']
  assert job['completionMode'] == 'Indexed'
  assert job['parallelism'] == job['completions']
  # Kubernetes takes a podFailurePolicy with this alone.
  assert pod['restartPolicy'] == 'Never'
  for rule in job['podFailurePolicy']['rules']:
    names = rule.get('onExitCodes', {}).get('containerName')
    assert names in (None, container['name'])
  volumes = {volume['name'] for volume in pod['volumes']}
  assert {mount['name'] for mount in container['volumeMounts']} == volumes
  claims = [v.get('persistentVolumeClaim') for v in pod['volumes']]
  claim = load('volume.yaml')
  assert {'claimName': claim['metadata']['name']} in claims
  assert claim['spec']['accessModes'] == ['ReadWriteMany']


def environment(jobset):
  pod = as_job(jobset)['spec']['template']['spec']
  return {entry['name']: entry for entry in pod['containers'][0]['env']}


def test_gpu_processes_find_each_other():
  jobset = load('jobset_gpu.yaml')
  job, variables = as_job(jobset), environment(load('jobset_gpu.yaml'))
  assert set(variables) == {
    'JAX_COORDINATOR_ADDRESS',
    'JAX_NUM_PROCESSES',
    'JAX_PROCESS_ID',
    'EAIN_START_SECONDS',
    'JAX_PLATFORMS',
  }
  # Without a GPU it ends; it does not train on the CPU.
  assert variables['JAX_PLATFORMS']['value'] == 'cuda,cpu'
  # Pod 0 of the Job, in the service that JobSet names after itself.
  host = f'{job["metadata"]["name"]}-0.{jobset["metadata"]["name"]}'
  address = variables['JAX_COORDINATOR_ADDRESS']['value']
  assert re.fullmatch(re.escape(host) + r':\d+', address)
  assert variables['JAX_NUM_PROCESSES']['value'] == str(
    job['spec']['completions']
  )
  field = variables['JAX_PROCESS_ID']['valueFrom']['fieldRef']['fieldPath']
  index = 'batch.kubernetes.io/job-completion-index'
  assert field == f"metadata.annotations['{index}']"


def test_tpu_slice_is_whole():
  jobset = load('jobset_tpu.yaml')
  job, variables = as_job(jobset), environment(jobset)
  assert {name: one['value'] for name, one in variables.items()} == {
    'EAIN_DISTRIBUTED': 'detect',
    'EAIN_START_SECONDS': '600',
    'JAX_PLATFORMS': 'tpu,cpu',
  }
  pod = job['spec']['template']['spec']
  topology = pod['nodeSelector']['cloud.google.com/gke-tpu-topology']
  rows, columns = map(int, topology.split('x'))
  limits = pod['containers'][0]['resources']['limits']
  assert job['spec']['completions'] * limits['google.com/tpu'] == rows * columns
